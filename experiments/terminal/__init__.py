"""What a person sees: flags, progress, tables, the style of figures, and how a program ends."""

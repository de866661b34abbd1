"""Lists the programs: `python -m experiments`."""

import ast
import pkgutil
import sys
from pathlib import Path

HERE = Path(__file__).parent


def programs() -> dict[str, str]:
    """Name -> what it does, for every module and package that runs by `python -m experiments.NAME`.

    Read from the text of the files: importing all of them takes many seconds.
    """
    found: dict[str, str] = {}
    for module in pkgutil.iter_modules([str(HERE)]):
        file = HERE / module.name / "__main__.py" if module.ispkg else HERE / f"{module.name}.py"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if 'if __name__ == "__main__":' in text and file != Path(__file__):
            said = ast.get_docstring(ast.parse(text)) or ""
            found[module.name] = said.partition("\n")[0].partition(":")[0]
    return found


def main() -> int:
    """Prints one line a program, and the command to begin with."""
    for name, about in programs().items():
        print(f"{name:<12}{about}")
    print(
        "\nBegin with:  python -m experiments.pretrain"
        "\nThen:        python -m experiments.generate"
        "\nAny flags:   python -m experiments.NAME --help"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

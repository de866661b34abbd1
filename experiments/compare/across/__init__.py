"""What is made of several studies: a grid of sizes and lengths, a leaderboard, fits and reports."""

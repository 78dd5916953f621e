"""What judges said of a study's policies: win rates, raw and at equal length, and their worth."""

"""Fields, records and trainings to look at: colors, contact sheets, curves, letters."""

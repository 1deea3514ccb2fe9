"""Fields and records to look at: colors, contact sheets, overlays."""

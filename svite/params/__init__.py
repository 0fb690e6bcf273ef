"""What may be asked for: studies, runs, recipes, options and data as parameter files state them, checked at once."""

"""Independent answers in numpy: float64 and exact integers, from the codes. Imports nothing of lowbit."""

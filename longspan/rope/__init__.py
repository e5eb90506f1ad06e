"""Rotary positions: frequencies in float64, methods as files, rotation, and the exporter."""

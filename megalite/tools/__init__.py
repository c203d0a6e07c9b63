"""Conversion, planning, diagnosis, reports and evaluation."""

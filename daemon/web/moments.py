"""Moments as the pages write them."""

from datetime import datetime


def plant_and_utc(moment: datetime) -> tuple[str, str]:
    """(in the plant's zone, which is that of this machine; in UTC, for who compares logs). moment: in UTC."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}", f"{moment:%Y-%m-%d %H:%M:%S} UTC"

"""Sends WhatsApp template notifications through BLiP, once, every failure kept with its reason."""

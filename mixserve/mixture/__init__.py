"""The arithmetic of mixing: which record fills which slot, and how the records get there."""

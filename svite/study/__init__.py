"""The runs of a study: trained, saved, and looked at in the end."""

"""torch's dict of an optimizer, `{"state", "param_groups"}`: written, read, by ids or by names, as JSON."""

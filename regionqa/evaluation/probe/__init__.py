"""The probe: made-up images that show whether a model looks at the regions it is told."""

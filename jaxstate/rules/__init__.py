"""What a Binding is made of: one file for each kind of rule, and what they have in common."""

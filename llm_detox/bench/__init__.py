"""How a served model bears load."""

"""Files of users: written atomically, with errors that name the path and the fix."""

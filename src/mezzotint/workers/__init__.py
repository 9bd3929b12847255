"""Worker processes: each owns one device. `wire` is all they and the API process share."""

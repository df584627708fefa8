"""What has been read or computed once and is kept, on disk or in memory."""

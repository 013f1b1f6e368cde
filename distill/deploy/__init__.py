"""What runs outside training: graphs for runtimes, sessions that listen, and how fast they are."""

"""What a run did, as one HTML page that needs no network, no script and no server."""

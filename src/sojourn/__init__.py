"""Sojourn keeps long test sessions alive: durable, watchable, comparable."""

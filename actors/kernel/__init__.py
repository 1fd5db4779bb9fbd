"""The actor kernel: mailboxes, slots, supervision. It knows no session, no store and no event loop (but `park` and `driver`)."""

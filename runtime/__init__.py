"""What a host embeds: settings, the supervision tree, stores and history. Drivers live in `stores`, and only there."""

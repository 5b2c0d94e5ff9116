//! Which protocol it is, from the first bytes of either side, never from the port alone.

//! The one byte loop: the only place that touches both sockets.

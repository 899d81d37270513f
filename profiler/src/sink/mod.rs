//! Sink: where encoded profiles go.

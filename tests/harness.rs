//! What the tests share: building Go programs, running goprof, reading profiles.

//! Files of profiled programs, mapped and safe to read while they change.

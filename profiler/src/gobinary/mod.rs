//! Everything goprof knows of Go binaries: finding and reading pclntab, moduledata, build info.

//! Sink: where encoded profiles go.
mod filename;
pub use filename::{Subject, default_name};
/// tmp
pub struct FileSink(std::path::PathBuf);
impl FileSink {
    /// tmp
    pub fn prepare(p: &std::path::Path) -> anyhow::Result<Self> {
        Ok(Self(p.into()))
    }
    /// tmp
    pub fn finish(self, b: &[u8]) -> anyhow::Result<()> {
        Ok(std::fs::write(self.0, b)?)
    }
}

//! Modules of a kernel, from its own packages, with those that they need, in the order
//! in which they are to be loaded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// One module.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, as the kernel's own commands take it.
    pub name: String,
    /// The modules that it needs.
    pub needs: Vec<String>,
    /// What is loaded into the kernel.
    pub content: Vec<u8>,
}

/// Adds the module `name` to `modules` behind all that it needs, unless it is there.
///
/// # Errors
/// It is in no file in `folders`, or one of those that it needs is not.
pub fn add(modules: &mut Vec<Module>, folders: &[PathBuf], name: &str) -> Result<()> {
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let found = folders.iter().find_map(|folder| find(folder, name));
    let path = found.with_context(|| format!("the kernel's packages hold no module {name}"))?;
    let content = read(&path)?;
    let needs = needs(&content)?;
    for needed in &needs {
        add(modules, folders, needed)?;
    }
    modules.push(Module {
        name: name.to_owned(),
        needs,
        content,
    });
    Ok(())
}

/// The module `name` of `modules`, behind all that it needs.
pub fn in_order<'m>(modules: &'m [Module], name: &str) -> Vec<&'m Module> {
    let mut order = Vec::new();
    if let Some(module) = modules.iter().find(|module| module.name == name) {
        for needed in &module.needs {
            order.extend(in_order(modules, needed));
        }
        order.push(module);
    }
    order
}

/// A file's name may have hyphens where the module's has underscores.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if entry.file_type().ok()?.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
            continue;
        }
        let file = entry.file_name();
        let stem = file.to_str().and_then(|file| {
            let stem = file.strip_suffix(".xz").unwrap_or(file);
            stem.strip_suffix(".ko")
        });
        if stem.is_some_and(|stem| stem.replace('-', "_") == name) {
            return Some(path);
        }
    }
    None
}

/// Since Linux 6.3 Debian compresses them.
fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("read {}", path.display()));
    }
    if command::find("xz").is_none() {
        bail!("xz unpacks the kernel's modules: run `apt-get install xz-utils`");
    }
    let mut xz = Command::new("xz");
    let output = xz.args(["--decompress", "--stdout"]).arg(path).output();
    let output = output.with_context(|| format!("unpack {}", path.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("cannot unpack {}: {}", path.display(), said.trim());
    }
    Ok(output.stdout)
}

/// The modules that one says it needs: `depends=` in its section `.modinfo`.
fn needs(content: &[u8]) -> Result<Vec<String>> {
    let key = b"depends=";
    let at = content.windows(key.len()).position(|bytes| bytes == key);
    let at = at.context("a module that does not say what it needs")?;
    let list = content[at + key.len()..].split(|byte| *byte == 0).next();
    let list = String::from_utf8_lossy(list.unwrap_or_default());
    let names = list.split(',').filter(|name| !name.is_empty());
    Ok(names.map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let drivers = folder.path().join("drivers");
        fs::create_dir(&drivers).unwrap();
        let write = |file: &str, depends: &str| {
            let content = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(drivers.join(file), content).unwrap();
        };
        write("disk.ko", "crc-t10dif,core");
        write("crc-t10dif.ko", "");
        write("core.ko", "crc-t10dif");
        let folders = [folder.path().to_owned()];
        let mut modules = Vec::new();
        add(&mut modules, &folders, "disk").unwrap();
        let names: Vec<&str> = modules.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["crc_t10dif", "core", "disk"]);
        write("apart.ko", "");
        add(&mut modules, &folders, "apart").unwrap();
        let order = in_order(&modules, "core");
        let names: Vec<&str> = order.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["crc_t10dif", "core"]);
        let error = add(&mut modules, &folders, "other").unwrap_err();
        assert!(error.to_string().contains("no module other"), "{error}");
    }
}

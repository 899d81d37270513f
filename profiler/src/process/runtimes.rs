//! Which Go runtimes a process has: mostly one, but each Go library in a program
//! of another language brings its own. Says which of them goroutines are looked
//! for in, and what belongs to the others.

use std::sync::Arc;

use super::{Mapped, Object, Process};

/// The Go object that the runtime is taken of: the program itself, else the
/// first that is mapped.
pub(super) fn choose(mappings: &[Mapped], exe: &str) -> Option<Arc<Object>> {
    let go = |mapped: &&Mapped| mapped.object.as_ref().is_some_and(|o| o.go().is_some());
    let mut program = mappings.iter().filter(|mapped| mapped.path == exe);
    let found = program.find(go).or_else(|| mappings.iter().find(go));
    found.and_then(|mapped| mapped.object.clone())
}

impl Process {
    /// The Go object whose goroutines are looked for: of a Go program the
    /// program itself. It stays the same when more are mapped.
    pub fn go_object(&self) -> Option<&Arc<Object>> {
        self.go.as_ref()
    }

    /// Go objects that bring a runtime of their own beside that of
    /// [`Process::go_object`]. Plugins do not.
    pub fn other_runtimes(&self) -> Vec<&Arc<Object>> {
        let mut others: Vec<&Arc<Object>> = Vec::new();
        for object in self.mappings.iter().filter_map(|m| m.object.as_ref()) {
            if self.is_other(object) && !others.iter().any(|other| Arc::ptr_eq(other, object)) {
                others.push(object);
            }
        }
        others
    }

    /// Whether a stack is of another runtime's goroutine: it has frames of its
    /// code, and none of the code of [`Process::go_object`].
    pub fn is_of_other_runtime(&self, frames: &[u64]) -> bool {
        let mut of_other = false;
        for address in frames {
            let object = self.locate(*address).and_then(|m| m.object.as_ref());
            match object {
                Some(object) if self.is_own(object) => return false,
                Some(object) => of_other |= self.is_other(object),
                None => {}
            }
        }
        of_other
    }

    fn is_own(&self, object: &Arc<Object>) -> bool {
        self.go.as_ref().is_some_and(|own| Arc::ptr_eq(own, object))
    }

    fn is_other(&self, object: &Arc<Object>) -> bool {
        let brings = object.go().is_some_and(|binary| !binary.is_plugin());
        brings && !self.is_own(object)
    }
}

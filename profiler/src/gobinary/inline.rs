//! From an address to its source frames: the inline tree of a function, walked
//! from the innermost call outwards (`runtime.inlineUnwinder`).

use super::bytes::{read_i32, read_u8};
use super::func_kind::FuncKind;
use super::pclntab::{Damaged, Func, MAX_STEPS, Table, View};
use super::version::{FUNCDATA_INL_TREE, Layout};

/// Calls inlined into one another at one address. Go's inliner stops long before.
const MAX_DEPTH: usize = 1000;
/// Records of one inline tree (`runtime.newInlineUnwinder` assumes no more).
const MAX_TREE: usize = 1 << 20;

/// One source frame at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoFrame {
    /// The function's full symbol name, as Go's own profiles have it, e.g.
    /// `main.Map[go.shape.int]` (Go 1.19 and 1.20 write `main.Map[...]`).
    pub name: String,
    /// Source file as Go's own profiles have it, empty where unknown.
    pub file: String,
    /// Line in that file (of the call, for all but the innermost frame), 0 where
    /// unknown.
    pub line: u32,
    /// Line of the `func` keyword, 0 where unknown. Go 1.19 does not record it:
    /// there it is the line of the first instruction for a physical function,
    /// and 0 for an inlined one.
    pub start_line: u32,
    /// Whether the function was inlined into the next frame's.
    pub inlined: bool,
    /// What the function is to the runtime.
    pub kind: FuncKind,
}

/// What a lookup reads.
pub(super) struct Expander<'a> {
    pub view: View<'a>,
    pub layout: &'a Layout,
    /// The bytes from `moduledata.gofunc` on.
    pub gofunc: &'a [u8],
}

/// One record of an inline tree.
struct InlinedCall {
    name: i32,
    func_id: u8,
    start_line: u32,
    parent_pc: i32,
}

impl Expander<'_> {
    /// Appends the frames at a text offset within `func`, leaf first. On damage
    /// nothing is appended.
    pub(super) fn expand(
        &self,
        func: &Func,
        offset: u32,
        frames: &mut Vec<GoFrame>,
    ) -> Result<(), Damaged> {
        let before = frames.len();
        let mut steps = MAX_STEPS;
        let result = self.walk(func, offset, frames, &mut steps);
        if result.is_err() {
            frames.truncate(before);
        }
        result
    }

    fn walk(
        &self,
        func: &Func,
        mut offset: u32,
        frames: &mut Vec<GoFrame>,
        steps: &mut u32,
    ) -> Result<(), Damaged> {
        let tree = self.view.funcdata(func, FUNCDATA_INL_TREE);
        for _ in 0..MAX_DEPTH {
            let (file, line) = self.position(func, offset, steps)?;
            let index = match tree {
                Some(_) => self.view.value(func, Table::InlineTree, offset, steps)?,
                None => -1,
            };
            let (Some(tree), Ok(index)) = (tree, usize::try_from(index)) else {
                frames.push(GoFrame {
                    name: self.view.func_name(func).ok_or(Damaged)?,
                    file,
                    line,
                    start_line: self.start_line(func, steps)?,
                    inlined: false,
                    kind: self.layout.func_kind(func.id),
                });
                return Ok(());
            };
            let call = self.inlined_call(tree as usize, index).ok_or(Damaged)?;
            frames.push(GoFrame {
                name: self.view.name(call.name).ok_or(Damaged)?,
                file,
                line,
                start_line: call.start_line,
                inlined: true,
                kind: self.layout.func_kind(call.func_id),
            });
            // The call site: an instruction of the same physical function.
            let distance = u32::try_from(call.parent_pc).map_err(|_| Damaged)?;
            offset = func.entry.checked_add(distance).ok_or(Damaged)?;
            if offset >= func.end {
                return Err(Damaged);
            }
        }
        Err(Damaged)
    }

    /// Text offsets that stand for the frames at one, leaf first: the offset
    /// itself, then where each inlined call is made from. As far as the tree is
    /// sound.
    pub(super) fn chain(&self, func: &Func, offset: u32) -> Vec<u32> {
        let mut chain = vec![offset];
        let mut steps = MAX_STEPS;
        let Some(tree) = self.view.funcdata(func, FUNCDATA_INL_TREE) else {
            return chain;
        };
        let mut outer = |offset| {
            let index = self.view.value(func, Table::InlineTree, offset, &mut steps);
            let index = usize::try_from(index.ok()?).ok()?;
            let call = self.inlined_call(tree as usize, index)?;
            let distance = u32::try_from(call.parent_pc).ok()?;
            let outer = func.entry.checked_add(distance)?;
            (outer < func.end).then_some(outer)
        };
        let mut last = offset;
        while let Some(next) = outer(last).filter(|_| chain.len() < MAX_DEPTH) {
            chain.push(next);
            last = next;
        }
        chain
    }

    /// File and line at a text offset, empty and 0 where the tables end before
    /// it, as they do in the padding after a function.
    fn position(
        &self,
        func: &Func,
        offset: u32,
        steps: &mut u32,
    ) -> Result<(String, u32), Damaged> {
        let file = self.view.value(func, Table::File, offset, steps)?;
        let line = self.view.value(func, Table::Line, offset, steps)?;
        if file == -1 || line == -1 {
            return Ok((String::new(), 0));
        }
        let line = u32::try_from(line).map_err(|_| Damaged)?;
        Ok((self.view.file(func, file)?, line))
    }

    fn start_line(&self, func: &Func, steps: &mut u32) -> Result<u32, Damaged> {
        match self.view.start_line(func) {
            Some(line) => Ok(line),
            None => {
                let line = self.view.value(func, Table::Line, func.entry, steps)?;
                Ok(u32::try_from(line).unwrap_or(0))
            }
        }
    }

    fn inlined_call(&self, tree: usize, index: usize) -> Option<InlinedCall> {
        let layout = &self.layout.inlined;
        if index >= MAX_TREE {
            return None;
        }
        let at = tree.checked_add(index * layout.size)?;
        let word = |offset: usize| read_i32(self.gofunc, at.checked_add(offset)?);
        let start_line = match layout.start_line {
            Some(offset) => u32::try_from(word(offset)?).unwrap_or(0),
            None => 0,
        };
        Some(InlinedCall {
            name: word(layout.name)?,
            func_id: read_u8(self.gofunc, at.checked_add(layout.func_id)?)?,
            start_line,
            parent_pc: word(layout.parent_pc)?,
        })
    }
}

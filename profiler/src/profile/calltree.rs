//! Call tree: a window's stacks merged from the root on. Knows nothing of how
//! the tree is shown; never recurses, however deep a stack is.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::frames;
use crate::symbolize::{FrameKind, FunctionId, MappingId, Sample, SymbolizedWindow};

/// What a node of the tree stands for. Equal ones with the same parent are one
/// node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A process, a thread, or all of them: no code.
    Group(String),
    /// A source frame.
    Frame {
        /// The function.
        function: FunctionId,
        /// The mapping, where the function has no source file to tell it by.
        mapping: Option<MappingId>,
        /// What kind of code it is.
        kind: FrameKind,
        /// Whether it was inlined into its parent.
        inlined: bool,
        /// Whether it could be named.
        named: bool,
    },
}

/// A node of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    /// Index into [`CallTree::keys`].
    pub key: u32,
    /// Distance from the root, which has 0.
    pub depth: u32,
    /// How much of the value ends here.
    pub self_weight: u64,
    /// The line that most of it was at, 0 where unknown.
    pub line: u32,
}

/// The tree, its nodes in preorder, siblings by falling total.
#[derive(Debug)]
pub(super) struct CallTree {
    /// The distinct keys.
    pub keys: Vec<Key>,
    /// The nodes; the first is the root.
    pub nodes: Vec<Node>,
}

/// Merges a window's stacks by the value `value` of their samples. The root is the only process, or `all`; below
/// come processes where there are several, and threads where they are told
/// apart.
pub(super) fn build(window: &SymbolizedWindow, value: usize) -> CallTree {
    let mut builder = Builder::default();
    let several = window.processes.len() != 1;
    let root = match window.samples.first() {
        Some(sample) if !several => frames::process_label(window, sample),
        _ => "all".to_owned(),
    };
    let root = builder.child(None, Key::Group(root));
    for sample in &window.samples {
        if let Some(weight) = frames::weight(sample, value) {
            builder.add(window, sample, root, weight);
        }
    }
    builder.finish()
}

/// The tree while it grows: nodes in order of first sight.
#[derive(Default)]
struct Builder {
    keys: Vec<Key>,
    key_index: HashMap<Key, u32>,
    nodes: Vec<Growing>,
    /// The node of a parent and a key.
    node_index: HashMap<(Option<u32>, u32), u32>,
    /// Weights by node and line.
    lines: HashMap<(u32, u32), u64>,
}

struct Growing {
    key: u32,
    parent: Option<u32>,
    self_weight: u64,
    total: u64,
}

impl Builder {
    fn add(&mut self, window: &SymbolizedWindow, sample: &Sample, root: u32, weight: u64) {
        let mut node = root;
        self.count(node, weight);
        if window.processes.len() != 1 {
            node = self.child(
                Some(node),
                Key::Group(frames::process_label(window, sample)),
            );
            self.count(node, weight);
        }
        if let Some(thread) = frames::thread_label(sample) {
            node = self.child(Some(node), Key::Group(thread));
            self.count(node, weight);
        }
        for frame in frames::outermost_first(window, sample) {
            let key = Key::Frame {
                function: frame.function,
                mapping: frames::mapping_as_source(window, &frame),
                kind: frame.location.kind,
                inlined: frame.inlined,
                named: frame.location.reason.is_none(),
            };
            node = self.child(Some(node), key);
            self.count(node, weight);
            if frame.line != 0 {
                add(self.lines.entry((node, frame.line)).or_default(), weight);
            }
        }
        add(&mut self.nodes[node as usize].self_weight, weight);
    }

    fn count(&mut self, node: u32, weight: u64) {
        add(&mut self.nodes[node as usize].total, weight);
    }

    /// The child of `parent` with `key`, new or known.
    fn child(&mut self, parent: Option<u32>, key: Key) -> u32 {
        let next = self.keys.len() as u32;
        let key = *self.key_index.entry(key).or_insert_with_key(|key| {
            self.keys.push(key.clone());
            next
        });
        let next = self.nodes.len() as u32;
        *self.node_index.entry((parent, key)).or_insert_with(|| {
            self.nodes.push(Growing {
                key,
                parent,
                self_weight: 0,
                total: 0,
            });
            next
        })
    }

    /// Puts the nodes into preorder.
    fn finish(self) -> CallTree {
        let mut children: Vec<Vec<u32>> = vec![Vec::new(); self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            if let Some(parent) = node.parent {
                children[parent as usize].push(i as u32);
            }
        }
        for siblings in &mut children {
            // First sight breaks ties, so the order does not depend on hashing.
            siblings.sort_by_key(|&i| (Reverse(self.nodes[i as usize].total), i));
        }
        let hottest = hottest_lines(&self.lines);
        let mut nodes = Vec::with_capacity(self.nodes.len());
        let mut stack = vec![(0_u32, 0_u32)];
        while let Some((i, depth)) = stack.pop() {
            let node = &self.nodes[i as usize];
            nodes.push(Node {
                key: node.key,
                depth,
                self_weight: node.self_weight,
                line: hottest.get(&i).map_or(0, |&(_, line)| line),
            });
            let siblings = children[i as usize].iter().rev();
            stack.extend(siblings.map(|&child| (child, depth + 1)));
        }
        CallTree {
            keys: self.keys,
            nodes,
        }
    }
}

/// For each node the line with the most of it, the lowest of equals.
fn hottest_lines(lines: &HashMap<(u32, u32), u64>) -> HashMap<u32, (u64, u32)> {
    let mut hottest: HashMap<u32, (u64, u32)> = HashMap::new();
    for (&(node, line), &count) in lines {
        let best = hottest.entry(node).or_insert((count, line));
        if (count, Reverse(line)) > (best.0, Reverse(best.1)) {
            *best = (count, line);
        }
    }
    hottest
}

fn add(total: &mut u64, count: u64) {
    *total = total.saturating_add(count);
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    /// The tree as indented text: name, own weight, line.
    fn text(window: &SymbolizedWindow) -> String {
        let tree = build(window, 0);
        let mut out = String::new();
        for node in &tree.nodes {
            let name = match &tree.keys[node.key as usize] {
                Key::Group(name) => name.clone(),
                Key::Frame {
                    function, inlined, ..
                } => {
                    let name = &window.functions[function.0 as usize].name;
                    format!("{name}{}", if *inlined { " (inlined)" } else { "" })
                }
            };
            out += &" ".repeat(node.depth as usize);
            out += &format!("{name} {} :{}\n", node.self_weight, node.line);
        }
        out
    }

    #[test]
    fn stacks_merge_from_the_root_the_heaviest_first() {
        assert_eq!(
            text(&fixture::one_process()),
            "app 0 :0\n \
             main.main 0 :33\n  \
             main.work 0 :14\n   \
             main.hot (inlined) 70 :7\n  \
             write 0 :0\n   \
             vfs_write 20 :0\n  \
             [no mapping] 1 :0\n"
        );
    }

    #[test]
    fn several_processes_stand_below_all_and_threads_below_them() {
        assert_eq!(
            text(&fixture::with_threads(fixture::two_processes())),
            "all 0 :0\n \
             worker-8 0 :0\n  \
             netpoll-1001 0 :0\n   \
             main.run 5 :9\n \
             api-7 0 :0\n  \
             netpoll-1000 0 :0\n   \
             net/http.(*conn).serve 3 :2009\n"
        );
    }

    #[test]
    fn a_function_at_two_lines_is_one_node_at_the_hotter_line() {
        let mut b = fixture::Builder::new();
        let app = b.process(1, "app", "/app");
        let at = |b: &mut fixture::Builder, line| {
            b.location(FrameKind::Go, None, &[("main.f", "f.go", 1, line)])
        };
        let (cold, hot) = (at(&mut b, 3), at(&mut b, 4));
        b.sample(app, &[cold], 1);
        b.sample(app, &[hot], 2);
        assert_eq!(text(&b.build()), "app 0 :0\n main.f 3 :4\n");
    }

    #[test]
    fn a_stack_100_000_frames_deep_does_not_overflow() {
        let mut b = fixture::Builder::new();
        let app = b.process(1, "app", "/app");
        let f = b.location(FrameKind::Go, None, &[("main.f", "f.go", 1, 2)]);
        b.sample(app, &vec![f; 100_000], 1);
        assert_eq!(build(&b.build(), 0).nodes.len(), 100_001);
    }
}

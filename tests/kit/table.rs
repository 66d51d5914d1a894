//! One stack with something of everything, and the operations that are tried on it step by step (fault, crash).

use cowfs::union::options::Format;

use super::fs::{EXCHANGE, NOREPLACE, S_IFCHR, S_IFIFO};
use super::ops::Op;
use super::tree::{Item, Tree};

/// A lower name that no mark can be put beside by adding to it.
pub const LONG: [u8; 255] = [b'L'; 255];

/// What is tried: `before` is done first, undisturbed.
pub struct Case {
    pub before: Vec<Op>,
    pub op: Op,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.before.is_empty() {
            write!(f, "{:?}, then ", self.before)?;
        }
        self.op.fmt(f)
    }
}

/// The upper and two lowers.
pub fn trees() -> Vec<Tree> {
    let upper = Tree::new(1)
        .file("uf", "upper file")
        .file("ud/child", "in an upper directory")
        .dir("ue")
        .file("m/u", "upper in merged")
        .whiteout("wf")
        .whiteout("wd")
        .opaque("op")
        .file("op/own", "in an opaque directory")
        .dir("emptied")
        .whiteout("emptied/gone");
    let lower = Tree::new(2)
        .file("f", vec![b'f'; 70_000])
        .mode(0o4751)
        .owner(12, 34)
        .xattr("user.colour", "blue")
        .xattr("trusted.mine", "kept")
        .file("small", "0123456789")
        .file("p/q/r/file", "deep")
        .dir("p/q/empty")
        .file("d/one", "1")
        .file("d/two/three", "3")
        .dir("e")
        .symlink("s", "somewhere")
        .add("fifo", Item::Fifo)
        .file("h1", "linked")
        .link("h1", "h2")
        .file("m/l", "lower in merged")
        .file("wf", "deleted file")
        .file("wd/old", "in a deleted directory")
        .file("op/old", "covered by an opaque directory")
        .file("emptied/gone", "x")
        .file(LONG, "long");
    let bottom =
        Tree::new(3).file("m/b", "bottom in merged").file("f", "never seen").file("d/four", "4").file("b", "b");
    vec![upper, lower, bottom]
}

type P = Vec<u8>;

fn p(text: &str) -> P {
    text.as_bytes().to_vec()
}

fn rename(old: &str, new: &str, flags: u32) -> Op {
    Op::Rename(p(old), p(new), flags)
}

fn copy_ups() -> Vec<Op> {
    vec![
        Op::Chmod(p("f"), 0o600),
        Op::Chmod(p("p/q/r"), 0o700),
        Op::Chmod(p("fifo"), 0o600),
        Op::Chown(p("p/q/r/file"), 5, 6),
        Op::Chown(p("s"), 5, 6),
        Op::Utimens(p("f"), (-1, 5)),
        Op::SetXattr(p("f"), "user.shape", p("round")),
        Op::SetXattr(p("uf"), "user.shape", p("round")),
        Op::RemoveXattr(p("f"), "user.colour"),
        Op::Append(p("f"), p("more")),
        Op::Append(p("uf"), p("more")),
        Op::Patch(p("p/q/r/file"), 2, p("XX")),
        Op::Patch(p("h1"), 0, p("LINKED")),
        Op::OpenTrunc(p("f")),
        Op::ReadTrunc(p("f")),
        Op::Truncate(p("f"), 0),
        Op::Truncate(p("f"), 5_000),
        Op::Truncate(p("small"), 100_000),
        Op::Chmod(LONG.to_vec(), 0o600),
    ]
}

fn creations() -> Vec<Op> {
    vec![
        Op::Create(p("new"), 0o640),
        Op::Create(p("p/q/r/new"), 0o640),
        Op::Create(p("wf"), 0o640),
        Op::Create(p("wd"), 0o640),
        Op::Mkdir(p("newd"), 0o750),
        Op::Mkdir(p("wd"), 0o750),
        Op::Mkdir(p("wf"), 0o750),
        Op::Mkdir(p("d/two/deep"), 0o750),
        Op::Symlink(p("there"), p("wf")),
        Op::Symlink(p("there"), p("p/link")),
        Op::Mknod(p("wf"), S_IFIFO | 0o600, (0, 0)),
        Op::Mknod(p("null"), S_IFCHR | 0o666, (1, 3)),
        Op::Link(p("uf"), p("ul")),
        Op::Link(p("f"), p("fl")),
        Op::Link(p("f"), p("wf")),
        Op::Link(p("h1"), p("h3")),
        Op::Link(p("f"), p("p/q/fl")),
    ]
}

fn removals() -> Vec<Op> {
    vec![
        Op::Unlink(p("f")),
        Op::Unlink(p("uf")),
        Op::Unlink(p("s")),
        Op::Unlink(p("h1")),
        Op::Unlink(p("b")),
        Op::Unlink(p("p/q/r/file")),
        Op::Unlink(p("op/own")),
        Op::Unlink(LONG.to_vec()),
        Op::Rmdir(p("e")),
        Op::Rmdir(p("ue")),
        Op::Rmdir(p("emptied")),
        Op::Rmdir(p("p/q/empty")),
    ]
}

fn renames() -> Vec<Op> {
    vec![
        rename("f", "g", 0),
        rename("f", "uf", 0),
        rename("uf", "f", 0),
        rename("uf", "ug", 0),
        rename("uf", "wf", 0),
        rename("f", "wf", 0),
        rename("f", "p/q/r/file", 0),
        rename("f", "p/q/r/g", NOREPLACE),
        rename("s", "f", 0),
        rename("h1", "h9", 0),
        Op::Rename(LONG.to_vec(), p("short"), 0),
        Op::Rename(p("uf"), LONG.to_vec(), 0),
        rename("ud", "ux", 0),
        rename("ud", "wd", 0),
        rename("ud", "e", 0),
        rename("ud", "ue", 0),
        rename("ud", "emptied", 0),
        rename("d", "dd", 0),
        rename("d", "wd", 0),
        rename("d", "e", 0),
        rename("d", "emptied", 0),
        rename("d", "p/q/r/d", 0),
        rename("d", "ue", 0),
        rename("m", "mm", 0),
        rename("p/q/r", "m/r", 0),
        rename("op", "opp", 0),
        rename("f", "uf", EXCHANGE),
        rename("uf", "f", EXCHANGE),
        rename("f", "d", EXCHANGE),
        rename("d", "ud", EXCHANGE),
        rename("d", "m", EXCHANGE),
        rename("uf", "p/q/r/file", EXCHANGE),
    ]
}

/// Two operations in a row, where the second meets what the first left.
fn sequels() -> Vec<Case> {
    let case = |before: Vec<Op>, op| Case { before, op };
    vec![
        case(vec![Op::Unlink(p("f"))], Op::Create(p("f"), 0o600)),
        case(vec![Op::Unlink(LONG.to_vec())], Op::Create(LONG.to_vec(), 0o600)),
        case(vec![Op::Chmod(p("f"), 0o600)], Op::Append(p("f"), p("more"))),
        case(vec![Op::Chmod(p("f"), 0o600)], Op::Unlink(p("f"))),
        case(vec![Op::Chmod(p("f"), 0o600)], rename("f", "g", 0)),
        case(vec![Op::Chmod(p("f"), 0o600)], Op::Link(p("f"), p("p/q/fl"))),
        case(vec![Op::Chmod(p("f"), 0o600)], Op::Truncate(p("f"), 5)),
        case(vec![Op::Chmod(p("f"), 0o600)], Op::OpenTrunc(p("f"))),
        case(vec![Op::Chmod(p("f"), 0o600)], rename("f", "p/q/r/file", EXCHANGE)),
        case(vec![Op::Chmod(p("f"), 0o600), rename("f", "p/q/g", 0)], Op::Append(p("p/q/g"), p("more"))),
        case(vec![Op::Chmod(p("f"), 0o600), rename("f", "p/q/g", 0)], rename("p/q/g", "f", 0)),
        case(vec![Op::Chown(p("h1"), 5, 6)], Op::Append(p("h2"), p("more"))),
        case(vec![Op::Chown(p("h1"), 5, 6)], rename("h2", "h9", 0)),
        case(vec![Op::Unlink(p("d/one"))], Op::Create(p("d/one"), 0o600)),
        case(vec![rename("d", "dd", 0)], rename("dd", "d", 0)),
        case(vec![rename("d", "dd", 0)], rename("ud", "d", 0)),
        case(vec![rename("d", "dd", 0)], Op::Mkdir(p("d"), 0o755)),
        case(vec![Op::Append(p("h1"), p("+"))], Op::Append(p("h2"), p("-"))),
        case(vec![Op::Append(p("h1"), p("+"))], Op::Unlink(p("h2"))),
        case(vec![Op::Append(p("h1"), p("+"))], Op::Unlink(p("h1"))),
    ]
}

impl Case {
    /// Whether owner or mode of something is made, changed or copied: what owners in attributes make another way.
    pub fn is_of_owners(&self) -> bool {
        let op = &self.op;
        let makes = matches!(op, Op::Create(..) | Op::Mkdir(..) | Op::Symlink(..) | Op::Mknod(..));
        makes || matches!(op, Op::Chmod(..) | Op::Chown(..) | Op::Append(..) | Op::Truncate(..) | Op::Utimens(..))
    }

    /// Whether this is a rename of a directory that has parts in a lower branch (or marks of its own), which a format
    /// without redirects answers with EXDEV.
    pub fn may_be_xdev(&self, format: Format) -> bool {
        let merged = |path: &P| ["d", "dd", "m", "p/q/r", "op"].iter().any(|name| path == name.as_bytes());
        let moves = |op: &Op| match op {
            Op::Rename(old, new, flags) => merged(old) || (flags & EXCHANGE != 0 && merged(new)),
            _ => false,
        };
        format != Format::Overlay && (moves(&self.op) || self.before.iter().any(moves))
    }
}

impl Case {
    /// Whether this may leave a link count too high, which hides nothing and loses nothing: how many names of a lower
    /// file were deleted is known while its node is, and where its copy is indexed, lowering the recorded count is a
    /// step of its own that may fail.
    pub fn loses_count(&self) -> bool {
        matches!(&self.op, Op::Unlink(path) if path.starts_with(b"h"))
    }
}

impl Case {
    /// The file whose data may come while this is done, if only its attributes have been copied before. While they come,
    /// the file's time is the present; it is put back afterwards, so a death in between is seen by the time alone, as with
    /// the kernel's overlayfs.
    pub fn fetches(&self) -> &[&[u8]] {
        let bare = |op: &Op| matches!(op, Op::Chmod(..) | Op::Chown(..));
        if !self.before.first().is_some_and(bare) {
            return &[];
        }
        match &self.op {
            Op::Append(path, _) if path.starts_with(b"h") => &[b"h1", b"h2"],
            Op::Append(path, _) if path.starts_with(b"p") => &[b"p/q/g"],
            Op::Append(..) | Op::Truncate(..) => &[b"f"],
            _ => &[],
        }
    }
}

/// Everything that is tried step by step.
pub fn cases(format: Format) -> Vec<Case> {
    let single = [copy_ups(), creations(), removals(), renames()].concat();
    // What follows on an EXDEV is another story.
    let sequels = sequels().into_iter().filter(|case| !case.may_be_xdev(format));
    single.into_iter().map(|op| Case { before: vec![], op }).chain(sequels).collect()
}

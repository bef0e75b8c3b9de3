//! A model of a disk, and of what a cut of the power leaves on it.
//!
//! What is written stands in memory until it is made durable; until then any of it may reach the disk, by sectors, in any
//! order. A file and the entries of a folder are independent of each other: an fsync of one says nothing about the other.
//! Real file systems order more than that, and others less than one would think.
//!
//! Three things every file system does keep, and without them no database would survive:
//! - A sector holds what a prefix of the writes to it has made: it goes to the disk from the page cache, which has them all.
//! - The entries of one folder change in their order (journalled metadata).
//! - After a change of a file's length that is lost, nothing later of that file is there.

use std::collections::{BTreeMap, HashMap};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::cached::{Cached, CachedFile, CachedFolder, Change, Entries, Entry, Fate, Id};
use super::trace::{Act, Call, Name};
use super::*;

#[derive(Debug)]
enum Inode {
    File(CachedFile),
    Folder(CachedFolder),
}

#[derive(Clone, Debug)]
struct Descriptor {
    id: Id,
    position: u64,
    /// Nothing but its writes moves its position.
    only_writes: bool,
}

/// Files and folders, as tests compare and write them. None: a folder.
pub(super) type Image = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
    /// The first one is the root.
    inodes: Vec<Inode>,
    descriptors: HashMap<i32, Descriptor>,
    /// By the number of a call that makes something durable: what, and how many of its changes.
    syncing: HashMap<usize, (Id, usize)>,
}

impl Disk {
    /// What is in this folder now, all of it durable.
    pub(super) fn of(root: &Path) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            inodes: Vec::new(),
            descriptors: HashMap::new(),
            syncing: HashMap::new(),
        };
        disk.load(root);
        disk
    }

    fn load(&mut self, path: &Path) -> Id {
        let id = self.inodes.len();
        if path.is_file() {
            self.inodes.push(Inode::File(Cached::new(fs::read(path).unwrap())));
            return id;
        }
        self.inodes.push(Inode::Folder(Cached::new(Entries::new())));
        let items = fs::read_dir(path).unwrap().map(|item| item.unwrap());
        let entries: Entries =
            items.map(|item| (item.file_name().into_string().unwrap(), self.load(&item.path()))).collect();
        self.inodes[id] = Inode::Folder(Cached::new(entries));
        id
    }

    /// The process is gone, and its descriptors.
    pub(super) fn process_ended(&mut self) {
        self.descriptors.clear();
        self.syncing.clear();
    }

    /// A call begins: from now on it may have its effect. One that makes something durable has none yet.
    pub(super) fn begin(&mut self, number: usize, call: &Call) {
        let settled = call.result.is_none().then(|| self.settle(call));
        let call = settled.as_ref().unwrap_or(call);
        if call.result.is_some_and(|result| result < 0) {
            return;
        }
        match &call.act {
            Act::Open { name, flags } => self.open(name, flags, call),
            Act::Close(fd) => drop(self.descriptors.remove(fd)),
            Act::Write { fd, data, at } => self.write(*fd, data, *at, call),
            Act::Resize { fd, len } => {
                if let Some(id) = self.id_of(*fd) {
                    self.file(id).change(Change::Resize(*len), Change::apply);
                }
            }
            Act::Sync(fd) => {
                if let Some(id) = self.id_of(*fd) {
                    let changes = match &self.inodes[id] {
                        Inode::File(file) => file.changes(),
                        Inode::Folder(folder) => folder.changes(),
                    };
                    self.syncing.insert(number, (id, changes));
                }
            }
            Act::Rename { from, to } => self.rename(from, to, call),
            Act::Unlink(name) | Act::RemoveFolder(name) => {
                if let Some((folder, name)) = self.place_of(name) {
                    self.folder(folder).change(Entry::Remove(name), Entry::apply);
                }
            }
            Act::MakeFolder(name) => {
                if let Some((folder, name)) = self.place_of(name) {
                    self.add(folder, name, Inode::Folder(Cached::new(Entries::new())));
                }
            }
            Act::Unknown(fds) => {
                let known = fds.iter().any(|fd| self.descriptors.contains_key(fd));
                assert!(!known, "the model of the disk does not know {}", call.text);
            }
            Act::Duplicate(_) | Act::Seek(_) | Act::Nothing => {}
        }
    }

    /// A call has returned.
    pub(super) fn end(&mut self, number: usize, call: &Call) {
        let Some(result) = call.result.filter(|result| *result >= 0) else { return };
        match &call.act {
            Act::Open { name, flags } => {
                let Some(id) = self.find(name) else { return };
                let only_writes = flags.split('|').any(|flag| flag == "O_WRONLY");
                self.descriptors.insert(result as i32, Descriptor { id, position: 0, only_writes });
            }
            Act::Duplicate(fd) => {
                if let Some(descriptor) = self.descriptors.get(fd).cloned() {
                    // Both share one position, which nothing here follows.
                    let descriptor = Descriptor { only_writes: false, ..descriptor };
                    self.descriptors.insert(*fd, descriptor.clone());
                    self.descriptors.insert(result as i32, descriptor);
                }
            }
            Act::Seek(fd) => {
                if let Some(descriptor) = self.descriptors.get_mut(fd) {
                    descriptor.position = result as u64;
                }
            }
            Act::Sync(_) => {
                let Some((id, upto)) = self.syncing.remove(&number) else { return };
                match &mut self.inodes[id] {
                    Inode::File(file) => file.sync(upto, Change::apply),
                    Inode::Folder(folder) => folder.sync(upto, Entry::apply),
                }
            }
            _ => {}
        }
    }

    /// What a call did in whose middle the process ended: the folder, in which nothing has happened since, shows it.
    fn settle(&self, call: &Call) -> Call {
        let exists = |name: &Name| {
            self.place_of(name).is_some_and(|(folder, name)| self.path_of(folder).join(name).exists())
        };
        let content = |fd: &i32| fs::read(self.path_of(self.id_of(*fd)?)).ok();
        let done = |done: bool| Some(if done { 0 } else { -1 });
        let (act, result) = match &call.act {
            Act::Unlink(name) | Act::RemoveFolder(name) => (call.act.clone(), done(!exists(name))),
            Act::Rename { from, .. } => (call.act.clone(), done(!exists(from))),
            Act::MakeFolder(name) | Act::Open { name, .. } => (call.act.clone(), done(exists(name))),
            Act::Write { fd, data, at: Some(at) } if let Some(content) = content(fd) => {
                let end = content.len().min(*at as usize + data.len());
                let data = content[end.min(*at as usize)..end].to_vec();
                let result = Some(data.len() as i64);
                (Act::Write { fd: *fd, data, at: Some(*at) }, result)
            }
            Act::Resize { fd, .. } if let Some(content) = content(fd) => {
                (Act::Resize { fd: *fd, len: content.len() as u64 }, Some(0))
            }
            Act::Write { fd, .. } => {
                let known = self.id_of(*fd).is_some();
                assert!(!known, "it is not known whether this was done: {}", call.text);
                (Act::Nothing, None)
            }
            other => (other.clone(), None),
        };
        Call { act, result, text: call.text.clone() }
    }

    /// Where a file or folder stands; the root, if nowhere.
    fn path_of(&self, id: Id) -> PathBuf {
        let mut left = vec![(self.root.clone(), 0)];
        while let Some((path, found)) = left.pop() {
            if found == id {
                return path;
            }
            if let Inode::Folder(folder) = &self.inodes[found] {
                left.extend(folder.now.iter().map(|(name, id)| (path.join(name), *id)));
            }
        }
        self.root.clone()
    }

    fn open(&mut self, name: &Name, flags: &str, call: &Call) {
        let has = |wanted: &str| flags.split('|').any(|flag| flag == wanted);
        let Some((folder, entry)) = self.place_of(name) else { return };
        assert!(!has("O_APPEND") && !has("O_TMPFILE"), "the model of the disk does not know {}", call.text);
        match self.find(name) {
            Some(id) if has("O_TRUNC") => self.file(id).change(Change::Resize(0), Change::apply),
            None if has("O_CREAT") => self.add(folder, entry, Inode::File(Cached::new(Vec::new()))),
            _ => {}
        }
    }

    fn write(&mut self, fd: i32, data: &[u8], at: Option<u64>, call: &Call) {
        let Some(descriptor) = self.descriptors.get_mut(&fd) else { return };
        let written = call.result.map_or(data.len(), |result| result as usize);
        let at = at.unwrap_or_else(|| {
            assert!(descriptor.only_writes, "the position of a file is not known: {}", call.text);
            let at = descriptor.position;
            descriptor.position += written as u64;
            at
        });
        let id = descriptor.id;
        let data = data[..written].to_vec();
        self.file(id).change(Change::Write { at, data }, Change::apply);
    }

    fn rename(&mut self, from: &Name, to: &Name, call: &Call) {
        match (self.place_of(from), self.place_of(to)) {
            (None, None) => {}
            (Some((folder, from)), Some((other, to))) if folder == other => {
                self.folder(folder).change(Entry::Rename(from, to), Entry::apply);
            }
            _ => panic!("the model of the disk does not know renames between folders: {}", call.text),
        }
    }

    fn add(&mut self, folder: Id, name: String, inode: Inode) {
        let id = self.inodes.len();
        self.inodes.push(inode);
        self.folder(folder).change(Entry::Add(name, id), Entry::apply);
    }

    fn id_of(&self, fd: i32) -> Option<Id> {
        self.descriptors.get(&fd).map(|descriptor| descriptor.id)
    }

    fn file(&mut self, id: Id) -> &mut CachedFile {
        match &mut self.inodes[id] {
            Inode::File(file) => file,
            Inode::Folder(_) => panic!("a folder is used as a file"),
        }
    }

    fn folder(&mut self, id: Id) -> &mut CachedFolder {
        match &mut self.inodes[id] {
            Inode::Folder(folder) => folder,
            Inode::File(_) => panic!("a file is used as a folder"),
        }
    }

    /// The folder that an entry is in, or would be, and its name there. None: it is not on this disk.
    fn place_of(&self, name: &Name) -> Option<(Id, String)> {
        let path = Path::new(&name.path);
        let (mut id, path) = match (path.is_absolute(), name.base) {
            (true, _) => (0, path.strip_prefix(&self.root).ok()?),
            (false, Some(base)) => (self.id_of(base)?, path),
            (false, None) => panic!("a path from the working folder: {}", path.display()),
        };
        let entry = path.file_name()?.to_str().unwrap().to_owned();
        for part in path.parent().into_iter().flatten() {
            let Inode::Folder(folder) = &self.inodes[id] else { panic!("{} is in a file", path.display()) };
            id = *folder.now.get(part.to_str().unwrap())?;
        }
        Some((id, entry))
    }

    fn find(&self, name: &Name) -> Option<Id> {
        if Path::new(&name.path) == self.root {
            return Some(0);
        }
        let (folder, entry) = self.place_of(name)?;
        let Inode::Folder(folder) = &self.inodes[folder] else { panic!("{name:?} is in a file") };
        folder.now.get(&entry).copied()
    }

    /// What a process would see now.
    pub(super) fn now(&self) -> Image {
        self.image(&mut |folder| folder.now.clone(), &mut |file| file.now.clone())
    }

    /// What is there if the power is cut now.
    pub(super) fn cut(&self, fate: &Fate, rng: &mut StdRng) -> Image {
        let mut other = StdRng::seed_from_u64(rng.random());
        self.image(&mut |folder| fate.entries(folder, rng), &mut |file| fate.content(file, &mut other))
    }

    fn image(
        &self,
        entries: &mut dyn FnMut(&CachedFolder) -> Entries,
        content: &mut dyn FnMut(&CachedFile) -> Vec<u8>,
    ) -> Image {
        let mut image = Image::new();
        let mut left = vec![(PathBuf::new(), 0)];
        while let Some((path, id)) = left.pop() {
            let found = match &self.inodes[id] {
                Inode::File(file) => Some(content(file)),
                Inode::Folder(folder) => {
                    left.extend(entries(folder).into_iter().map(|(name, id)| (path.join(name), id)));
                    None
                }
            };
            image.insert(path, found);
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::{Moment, Trace};
    use super::*;

    /// What strace writes of these calls, all by one thread.
    fn replay(disk: &mut Disk, calls: &[String]) {
        let lines: Vec<_> = calls.iter().map(|call| format!("7 {call}")).collect();
        let trace = Trace::parse(&lines.join("\n"));
        for moment in &trace.moments {
            match moment {
                Moment::Begin(number) => disk.begin(*number, &trace.calls[*number]),
                Moment::End(number) => disk.end(*number, &trace.calls[*number]),
            }
        }
    }

    fn quoted(text: &str) -> String {
        let digits: Vec<_> = text.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("\"{}\"", digits.concat())
    }

    #[test]
    fn only_what_was_made_durable_is_sure_to_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| quoted(folder.path().join(name).to_str().unwrap());
        let (root, made, file) = (path(""), path("d"), path("d/f"));
        let mut disk = Disk::of(folder.path());
        let mut rng = StdRng::seed_from_u64(0);
        let mut left = |disk: &Disk, fate| {
            let image = disk.cut(&fate, &mut rng);
            image.get(Path::new("d")).map(|_| image.get(Path::new("d/f")).cloned().flatten())
        };
        let begin = [
            format!("mkdir({made}, 0777) = 0"),
            format!("openat(AT_FDCWD, {file}, O_WRONLY|O_CREAT, 0666) = 3"),
            format!("write(3, {}, 2) = 2", quoted("ab")),
            "fsync(3) = 0".to_owned(),
        ];
        replay(&mut disk, &begin);
        assert_eq!(left(&disk, Fate::Lost), None, "the file is durable, and nothing leads to it");
        let sync = |path: &str| {
            [format!("openat(AT_FDCWD, {path}, O_RDONLY) = 4"), "fsync(4) = 0".into(), "close(4) = 0".into()]
        };
        replay(&mut disk, &sync(&root));
        assert_eq!(left(&disk, Fate::Lost), Some(None));
        replay(&mut disk, &sync(&made));
        assert_eq!(left(&disk, Fate::Lost), Some(Some(b"ab".to_vec())));
        let more = [
            format!("write(3, {}, 1) = 1", quoted("c")),
            "sync_file_range(3, 0, 3, SYNC_FILE_RANGE_WRITE) = 0".to_owned(),
            format!("pwrite64(3, {}, 1, 0) = 1", quoted("A")),
            format!("unlink({file}) = 0"),
        ];
        replay(&mut disk, &more);
        assert_eq!(left(&disk, Fate::Lost), Some(Some(b"ab".to_vec())));
        assert_eq!(left(&disk, Fate::Kept), Some(None));
        for _ in 0..100 {
            if let Some(Some(content)) = left(&disk, Fate::Sectors(0.5)) {
                let possible: [&[u8]; 3] = [b"ab", b"abc", b"Abc"];
                assert!(possible.contains(&content.as_slice()), "a sector holds a prefix: {content:?}");
            }
        }
    }
}

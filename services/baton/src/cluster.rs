//! `cluster.json`: which child runs where, kept true while the cluster lives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// One running child.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ChildRecord {
    pub(crate) role: String,
    pub(crate) pid: u32,
    pub(crate) id: String,
    /// Port by name; empty until the child announced itself.
    pub(crate) ports: BTreeMap<String, u16>,
}

/// The line that a role prints when it listens.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Announcement {
    pub(crate) ports: BTreeMap<String, u16>,
}

/// The file and what is in it.
pub(crate) struct ClusterFile {
    path: PathBuf,
    children: Mutex<BTreeMap<String, ChildRecord>>,
}

#[derive(Serialize)]
struct Document {
    children: Vec<ChildRecord>,
}

impl ClusterFile {
    /// Starts an empty cluster in `dir`.
    ///
    /// # Errors
    /// If the directory or the file cannot be written.
    pub(crate) fn create(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let file = Self { path: dir.join("cluster.json"), children: Mutex::default() };
        file.write(&BTreeMap::new())?;
        Ok(file)
    }

    /// Children in order of their ids.
    pub(crate) fn children(&self) -> Vec<ChildRecord> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Adds a child or replaces the one of the same id.
    pub(crate) fn set(&self, child: ChildRecord) -> anyhow::Result<()> {
        self.change(|children| {
            children.insert(child.id.clone(), child);
        })
    }

    /// Removes a child that ended.
    pub(crate) fn remove(&self, id: &str) -> anyhow::Result<()> {
        self.change(|children| {
            children.remove(id);
        })
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, ChildRecord>)) -> anyhow::Result<()> {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut children);
        self.write(&children)
    }

    /// Writes beside the file and renames: a reader never sees half of it.
    fn write(&self, children: &BTreeMap<String, ChildRecord>) -> anyhow::Result<()> {
        let document = Document { children: children.values().cloned().collect() };
        let draft = self.path.with_extension("json.new");
        std::fs::write(&draft, serde_json::to_vec_pretty(&document)?)
            .and_then(|()| std::fs::rename(&draft, &self.path))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_follows_the_children() {
        let dir = std::env::temp_dir().join(format!("baton-cluster-{}", std::process::id()));
        let file = ClusterFile::create(&dir).expect("a temporary directory is writable");
        let child = |id: &str, pid| ChildRecord { role: "decode".into(), pid, id: id.into(), ports: BTreeMap::new() };
        let read = || -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(&file.path).expect("written")).expect("whole JSON")
        };
        assert_eq!(read()["children"], serde_json::json!([]));
        file.set(child("decode-0", 1)).expect("set");
        file.set(child("decode-1", 2)).expect("set");
        file.set(child("decode-0", 3)).expect("set");
        let pids: Vec<_> = read()["children"].as_array().expect("array").iter().map(|c| c["pid"].clone()).collect();
        assert_eq!(pids, [3, 2]);
        file.remove("decode-1").expect("remove");
        assert_eq!(read()["children"].as_array().map(Vec::len), Some(1));
        std::fs::remove_dir_all(dir).expect("clean up");
    }
}

//! How many processors this process may use.
//!
//! Source: Linux, Documentation/admin-guide/cgroup-v2.rst ("CPU Interface Files") and scheduler/sched-bwc.rst.

use std::path::Path;

/// Processors this process may use: affinity and control groups' quotas respected, at least 1.
pub fn cpu_count() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cpu_quota().map_or(allowed, |quota| allowed.min(quota as usize).max(1))
}

/// Processors' worth of time that control groups allow this process, if they set a limit.
pub fn cpu_quota() -> Option<f64> {
    quota_under(Path::new("/sys/fs/cgroup"), &std::fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// The least quota of the groups listed in `/proc/self/cgroup` and of those above them, seen from `root`.
fn quota_under(root: &Path, groups: &str) -> Option<f64> {
    let mut least: Option<f64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (root, read): (_, fn(&Path) -> Option<f64>) = match controllers {
            "" => (root.to_owned(), second_version),
            names if names.split(',').any(|name| name == "cpu") => (root.join("cpu"), first_version),
            _ => continue,
        };
        // Inside a container the listed group may lie above what is mounted: then the mount itself is ours.
        let group = Path::new(group.trim_start_matches('/'));
        let inside = !group.components().any(|part| part == std::path::Component::ParentDir);
        for group in group.ancestors().filter(|group| inside || group.as_os_str().is_empty()) {
            let quota = read(&root.join(group));
            least = least.into_iter().chain(quota).reduce(f64::min);
        }
    }
    least
}

/// `cpu.max`: a quota or `max`, and a period, in microseconds.
fn second_version(group: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(group.join("cpu.max")).ok()?;
    let mut words = text.split_whitespace();
    processors(words.next()?, words.next()?)
}

/// Two files; a quota of -1 is none.
fn first_version(group: &Path) -> Option<f64> {
    let read = |name| std::fs::read_to_string(group.join(name)).ok();
    processors(read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim())
}

fn processors(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The quota with these files under the root.
    fn check(files: &[(&str, &str)], groups: &str, expected: Option<f64>) {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }
        assert_eq!(quota_under(root.path(), groups), expected, "{files:?} {groups:?}");
    }

    #[test]
    fn the_least_quota_from_the_group_up_counts() {
        check(&[], "0::/a/b\n", None);
        check(&[("a/b/cpu.max", "max 100000\n")], "0::/a/b\n", None);
        check(&[("a/b/cpu.max", "150000 100000\n")], "0::/a/b\n", Some(1.5));
        check(&[("a/b/cpu.max", "400000 100000\n"), ("a/cpu.max", "50000 100000\n")], "0::/a/b\n", Some(0.5));
        check(&[("cpu.max", "200000 100000\n")], "0::/\n", Some(2.0));
        check(&[("cpu.max", "200000 100000\n"), ("x/cpu.max", "1 100000\n")], "0::/../../x\n", Some(2.0));
        let first = [("cpu/d/cpu.cfs_quota_us", "300000\n"), ("cpu/d/cpu.cfs_period_us", "100000\n")];
        check(&first, "4:memory:/d\n3:cpu,cpuacct:/d\n", Some(3.0));
        check(&first, "3:cpuset:/d\n", None);
        check(&[("cpu/cpu.cfs_quota_us", "-1\n"), ("cpu/cpu.cfs_period_us", "100000\n")], "3:cpu:/\n", None);
        for bad in ["", "1", "0 1", "1 0", "a b", "-5 10"] {
            check(&[("cpu.max", bad)], "0::/\n", None);
        }
        check(&[], "nonsense\n:\n", None);
    }

    #[test]
    fn at_least_one_and_no_more_than_the_quota() {
        assert!(cpu_count() >= 1);
        assert!(cpu_quota().is_none_or(|quota| cpu_count() as f64 <= quota.max(1.0)));
    }
}

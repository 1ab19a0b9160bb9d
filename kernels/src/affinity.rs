//! Cores that threads may run on.

use std::io;

/// Why a thread stays unbound.
#[derive(Debug, thiserror::Error)]
#[error("a thread cannot be bound to core {core}")]
pub struct PinError {
    /// The core.
    pub core: usize,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

/// Cores that the calling thread may run on, ascending.
///
/// # Errors
/// The system's, or that it has no such notion.
#[cfg(target_os = "linux")]
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
}

/// Binds the calling thread to one core.
///
/// # Errors
/// [`PinError`] if there is no such core or this process may not use it.
#[cfg(target_os = "linux")]
pub fn pin_thread(core: usize) -> Result<(), PinError> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let pinned = if core < CpuSet::MAX_CPU {
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set).map_err(io::Error::from)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("cores are below {}", CpuSet::MAX_CPU)))
    };
    pinned.map_err(|source| PinError { core, source })
}

/// Not on this system.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Not on this system.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn pin_thread(core: usize) -> Result<(), PinError> {
    Err(PinError { core, source: io::ErrorKind::Unsupported.into() })
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn a_bound_thread_stays_on_its_core_and_binds_nobody_else() {
        let before = allowed_cores().unwrap();
        for &core in &before {
            std::thread::spawn(move || {
                pin_thread(core).unwrap();
                assert_eq!(allowed_cores().unwrap(), [core]);
            })
            .join()
            .unwrap();
        }
        assert_eq!(allowed_cores().unwrap(), before);
        for core in [rustix::thread::CpuSet::MAX_CPU - 1, usize::MAX] {
            assert_eq!(pin_thread(core).unwrap_err().core, core, "there is no such core");
        }
    }
}

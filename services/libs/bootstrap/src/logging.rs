//! Log lines on standard error, as text or JSON, and the panic hook.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Shape of a log line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `BATON_LOG` or `RUST_LOG` is not a list of filters.
    #[error("{variable}: {reason}")]
    Filter {
        /// Which variable.
        variable: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Something else in this process has set up logging before.
    #[error("logging is already set up")]
    Again,
}

/// Sets up logging and the panic hook for the whole process; call once, first.
///
/// What is logged: `BATON_LOG`, else `RUST_LOG`, else level info.
///
/// # Errors
/// [`LoggingError`]
pub fn init(format: Format) -> Result<(), LoggingError> {
    let filter = filter()?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|_| LoggingError::Again)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn filter() -> Result<EnvFilter, LoggingError> {
    for variable in ["BATON_LOG", "RUST_LOG"] {
        if let Some(text) = crate::env::string(variable) {
            return EnvFilter::try_new(text)
                .map_err(|error| LoggingError::Filter { variable, reason: error.to_string() });
        }
    }
    Ok(EnvFilter::new("info"))
}

/// Says where, never what: the payload may hold a prompt.
fn log_panic(info: &std::panic::PanicHookInfo<'_>) {
    let location = info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    tracing::error!(location, thread = thread.name().unwrap_or("unnamed"), "a task panicked");
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic while writing").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_logged_without_its_payload() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(log_panic));
        let result = tracing::subscriber::with_default(subscriber, || {
            std::panic::catch_unwind(|| panic!("the prompt was {}", "secret"))
        });
        std::panic::set_hook(before);
        assert!(result.is_err());
        let text = String::from_utf8(buffer.0.lock().expect("written").clone()).expect("text");
        assert!(text.contains("logging.rs:"), "{text}");
        assert!(!text.contains("secret") && !text.contains("prompt"), "{text}");
    }
}

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

//! modelfile

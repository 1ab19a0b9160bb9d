//! Names of what the scheduler keeps. Numbers only ever grow, so an old name never means a new thing.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

id! {
    /// A sequence. Their order is the order of arrival: the smaller, the older.
    SeqId
}
id! {
    /// Room promised to a sequence that has not come yet.
    ReservationId
}
id! {
    /// Blocks allocated for KV that is on its way here.
    LandingId
}
id! {
    /// A transfer's ownership of blocks.
    HoldId
}

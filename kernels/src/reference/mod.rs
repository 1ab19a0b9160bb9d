//! Plain scalar operations: the oracle of every test.

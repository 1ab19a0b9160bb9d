//! A stream of records of the socket transports from a stranger: read to its end, or refused where it loses its
//! rhythm. Nothing is allocated for a length before it is bounded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use transfer::Checksum;
use transfer::frame::Expected;
use transfer::record::check_stream;
use types::{BlockHash, Epoch, RequestId};

const HASHES: [BlockHash; 3] = [BlockHash([1; 16]), BlockHash([2; 16]), BlockHash([3; 16])];

fuzz_target!(|bytes: &[u8]| {
    for checksum in [Checksum::Off, Checksum::On] {
        let expected = Expected {
            request: RequestId(7),
            owner_epoch: Epoch(3),
            worker_epoch: Epoch(4),
            n_tokens: 9,
            block_tokens: 4,
            cell_bytes: &[32, 64],
            hashes: &HASHES,
            checksum,
        };
        if let Ok(n_cells) = check_stream(bytes, &expected) {
            // A cell takes its header and its payload at least.
            assert!(n_cells * (88 + 32) <= bytes.len());
        }
    }
});

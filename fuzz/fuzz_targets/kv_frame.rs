//! A frame of the KV data plane from a stranger: it names a cell of the expected sequence, or is refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use transfer::Checksum;
use transfer::frame::{Expected, validate_encoded};
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
        if let Ok(cell) = validate_encoded(bytes, &expected) {
            assert!(cell.block < 3 && cell.layer < 2);
        }
    }
});

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{ArenaError, CellShape, KvArena};

/// Byte that a writer puts at row `row` of plane `plane`.
fn value(generation: u8, plane: usize, row: usize) -> u8 {
    generation.wrapping_mul(31).wrapping_add((plane * 16 + row) as u8)
}

fn append(arena: &KvArena, layer: usize, block: u32, first: usize, n: usize, generation: u8) {
    let CellShape { planes, row_bytes } = arena.cell_shape(layer);
    let mut rows = arena.append(layer, block, first, n).unwrap();
    for plane in 0..planes {
        for (i, row) in rows.plane_mut(plane).chunks_exact_mut(row_bytes).enumerate() {
            row.fill(value(generation, plane, first + i));
        }
    }
    rows.publish();
}

fn arena() -> KvArena {
    let wide = CellShape { planes: 4, row_bytes: 8 };
    KvArena::with_cells(&[wide, CellShape { planes: 2, row_bytes: 4 }], 3, 4).unwrap()
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let cell = CellShape { planes: 2, row_bytes: 8 };
    let check = |cells: &[CellShape], n_blocks, block_tokens| {
        let error = KvArena::with_cells(cells, n_blocks, block_tokens).unwrap_err();
        assert!(matches!(error, ArenaError::Shape { .. } | ArenaError::OutOfMemory { .. }), "{error}");
    };
    check(&[], 1, 16);
    check(&[cell], 0, 16);
    check(&[cell], 1, 0);
    check(&[cell], usize::MAX, 16);
    check(&[cell], 1 << 30, 1 << 30);
    check(&[CellShape { planes: usize::MAX, row_bytes: 8 }], 2, 16);
    check(&[CellShape { planes: 0, row_bytes: 8 }], 2, 16);
    assert!(matches!(KvArena::new(&[33], 2, 16), Err(ArenaError::Shape { .. })));
    assert_eq!(KvArena::new(&[32, 64], 2, 16).unwrap().cell_bytes(1), 64);
}

#[test]
fn exported_cells_import_elsewhere_with_the_rest_zero() {
    let (from, to) = (arena(), arena());
    append(&from, 0, 1, 0, 2, 7);
    append(&from, 0, 1, 2, 1, 7);
    assert_eq!(from.rows(0, 1), 3);
    let mut cell = vec![0xFF; from.cell_bytes(0)];
    assert!(matches!(from.export(0, 1, 4, &mut cell), Err(ArenaError::MissingRows { found: 3, .. })));
    from.export(0, 1, 2, &mut cell).unwrap();
    for (i, &byte) in cell.iter().enumerate() {
        let (plane, row) = (i / 32, i / 8 % 4);
        assert_eq!(byte, if row < 2 { value(7, plane, row) } else { 0 });
    }
    to.import(0, 2, 2, &cell).unwrap();
    assert_eq!(to.rows(0, 2), 2);
    append(&to, 0, 2, 2, 2, 7);
    let mut again = vec![0; cell.len()];
    to.export(0, 2, 2, &mut again).unwrap();
    assert_eq!(again, cell);
}

#[test]
fn wrong_calls_are_errors() {
    let arena = arena();
    let mut cell = vec![0; arena.cell_bytes(0)];
    assert!(matches!(arena.export(2, 0, 0, &mut cell), Err(ArenaError::OutOfRange { .. })));
    assert!(matches!(arena.import(0, 3, 0, &cell), Err(ArenaError::OutOfRange { .. })));
    assert!(matches!(arena.import(0, 0, 5, &cell), Err(ArenaError::TooManyRows { .. })));
    assert!(matches!(arena.import(1, 0, 1, &cell), Err(ArenaError::Length { expected: 32, found: 128, .. })));
    arena.import(0, 0, 1, &cell).unwrap();
    assert!(matches!(arena.import(0, 0, 1, &cell), Err(ArenaError::OutOfOrder { found: 1, .. })));
    assert!(matches!(arena.append(0, 0, 2, 1), Err(ArenaError::OutOfOrder { found: 1, first_row: 2, .. })));
    assert!(matches!(arena.append(0, 0, 1, 4), Err(ArenaError::TooManyRows { .. })));
    assert!(matches!(arena.append(0, 0, usize::MAX, 2), Err(ArenaError::TooManyRows { .. })));
    let open = arena.append(0, 0, 1, 1).unwrap();
    assert!(matches!(arena.append(0, 0, 1, 1), Err(ArenaError::Busy { .. })));
    assert_eq!(arena.rows(0, 0), 1, "rows being written are not seen");
    drop(open);
    assert_eq!(arena.rows(0, 0), 1, "an abandoned append publishes nothing");
    append(&arena, 0, 0, 1, 3, 1);
}

#[test]
fn reset_empties_all_layers_and_refuses_pinned_blocks() {
    let arena = arena();
    append(&arena, 0, 1, 0, 4, 1);
    append(&arena, 1, 1, 0, 2, 1);
    let pin = arena.pin(1);
    assert!(catch_unwind(AssertUnwindSafe(|| arena.reset(1))).is_err());
    assert_eq!((pin.block(), pin.rows(0), pin.rows(1)), (1, 4, 2), "a refused reset changes nothing");
    arena.reset(0);
    drop(pin);
    let open = arena.append(0, 1, 4, 0).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| arena.reset(1))).is_err(), "a writer holds the block too");
    drop(open);
    arena.reset(1);
    assert_eq!((arena.rows(0, 1), arena.rows(1, 1)), (0, 0));
    append(&arena, 0, 1, 0, 1, 2);
}

#[test]
fn whole_cells_are_read_and_written_in_place() {
    let (from, to) = (arena(), arena());
    append(&from, 0, 1, 0, 3, 7);
    assert!(from.pin(1).cell(0).is_none(), "a row is missing");
    append(&from, 0, 1, 3, 1, 7);
    let mut exported = vec![0; from.cell_bytes(0)];
    from.export(0, 1, 4, &mut exported).unwrap();
    let pin = from.pin(1);
    assert_eq!(pin.cell(0).unwrap(), exported);
    let mut place = to.append(0, 2, 0, 3).unwrap();
    place.cell_mut().copy_from_slice(&exported);
    assert_eq!(to.rows(0, 2), 0, "not seen before it is published");
    place.publish();
    assert_eq!((to.rows(0, 2), to.pin(2).plane(0, 1, 3)), (3, pin.plane(0, 1, 3)));
    let mut more = to.append(0, 2, 3, 1).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| more.cell_mut().len())).is_err());
}

#[test]
fn reading_rows_that_are_not_there_panics() {
    let arena = arena();
    append(&arena, 0, 0, 0, 1, 1);
    let pin = arena.pin(0);
    assert_eq!(pin.plane(0, 3, 1), [value(1, 3, 0); 8]);
    assert!(catch_unwind(AssertUnwindSafe(|| pin.plane(0, 0, 2).len())).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| pin.plane(0, 4, 1).len())).is_err());
}

/// An exporter copies while the writer appends, and the writer resets whenever it can. Every copy must be whole
/// rows of one generation.
#[test]
fn exporters_never_see_half_a_row_or_two_generations() {
    let rounds = if cfg!(miri) { 10 } else { 3_000 };
    let shape = CellShape { planes: 3, row_bytes: 64 };
    let arena = Arc::new(KvArena::with_cells(&[shape], 1, 8).unwrap());
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (arena, done) = (arena.clone(), done.clone());
            std::thread::spawn(move || {
                let mut cell = vec![0; arena.cell_bytes(0)];
                let mut copies = 0_usize;
                while !done.load(Ordering::Relaxed) || copies == 0 {
                    let n_rows = arena.rows(0, 0);
                    if n_rows == 0 || arena.export(0, 0, n_rows, &mut cell).is_err() {
                        std::thread::yield_now();
                        continue;
                    }
                    copies += 1;
                    let base = cell[0];
                    for (i, &byte) in cell.iter().enumerate() {
                        let (plane, row) = (i / 512, i / 64 % 8);
                        let expected = base.wrapping_add((plane * 16 + row) as u8);
                        assert_eq!(byte, if row < n_rows { expected } else { 0 });
                    }
                }
                copies
            })
        })
        .collect();
    for generation in 0..rounds {
        let mut row = 0;
        for n in [1, 3, 2, 1, 1] {
            append(&arena, 0, 0, row, n, generation as u8);
            row += n;
        }
        // Readers pin only for the length of a copy; wait for the gap between two as an owner would.
        while catch_unwind(AssertUnwindSafe(|| quiet_reset(&arena))).is_err() {
            std::thread::yield_now();
        }
    }
    append(&arena, 0, 0, 0, 8, 1);
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
}

/// Resets unless somebody is seen to hold the block, so that the test does not print thousands of panics.
fn quiet_reset(arena: &KvArena) {
    while arena.pins[0].load(Ordering::Relaxed) != 0 {
        std::thread::yield_now();
    }
    arena.reset(0);
}

"""Steps that improve a data set: removal of copies, filters, selection, mixing."""

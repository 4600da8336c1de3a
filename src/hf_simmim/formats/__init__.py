"""File formats that other libraries read: volumes, series, arrays and large images; each library is optional."""

'use strict';

function sortBy(table, button) {
  const heading = button.closest('th');
  const now = heading.getAttribute('aria-sort');
  const flipped = { ascending: 'descending', descending: 'ascending' };
  const order = flipped[now] || button.dataset.first;
  for (const other of table.querySelectorAll('thead [aria-sort]')) other.setAttribute('aria-sort', 'none');
  heading.setAttribute('aria-sort', order);

  const column = Number(button.dataset.column);
  const isText = heading.classList.contains('text');
  const sign = order === 'ascending' ? 1 : -1;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, value: row.cells[column].dataset.value }));
  rows.sort((one, other) => {
    // What was not measured comes last either way.
    if (one.value === undefined || other.value === undefined) {
      return (one.value === undefined) - (other.value === undefined);
    }
    const difference = isText
      ? one.value.localeCompare(other.value, 'en', { numeric: true })
      : Number(one.value) - Number(other.value);
    return sign * difference;
  });
  body.append(...rows.map(({ row }) => row));
}

for (const table of document.querySelectorAll('table.sortable')) {
  for (const button of table.querySelectorAll('thead button')) {
    button.addEventListener('click', () => sortBy(table, button));
  }
}

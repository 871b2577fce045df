import './dom.js';

await import('./page.js');
